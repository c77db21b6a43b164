"""`token-broker doctor`: finds in half a minute why voice fails, and says what to do."""
