"""The networks, in torch alone; knows no text, no files, no command line."""
