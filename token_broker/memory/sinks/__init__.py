"""Where turns go once they are stored: Zep, or nowhere further (the store itself is the memory)."""
