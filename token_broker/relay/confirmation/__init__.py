"""The agent's settings, and Azure's word that they are in force."""
