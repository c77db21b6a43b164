"""`token-broker doctor`: why voice fails, in a minute, with the remediation."""
