"""What an agent's tools do: the calls that the broker answers itself, and the guardrail that sees the user's words."""
