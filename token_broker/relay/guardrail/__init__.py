"""The guardrail in a talk: no answer is asked for before the user's words were seen."""
