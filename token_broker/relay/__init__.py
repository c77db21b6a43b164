"""The proxy: a talk over our own WebSocket, with Azure's credential kept on the server."""
