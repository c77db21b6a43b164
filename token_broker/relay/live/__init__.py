"""GPT-Live: its socket through the proxy, its sessions over WebRTC, and what its events mean."""
