"""Session configurations as strict models: GA's nested shape, and the flat ones of preview and Voice Live."""
