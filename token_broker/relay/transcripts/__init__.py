"""From events to turns."""
