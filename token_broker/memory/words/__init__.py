"""Words for recall: folded, chosen from a question, and looked for in what was said. Pure functions."""
