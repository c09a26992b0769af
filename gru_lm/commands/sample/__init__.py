"""`sample`: text that continues a prompt, or records."""
