"""What protocols over HTTP have in common above its wire: connections, callers' shared sessions, links to targets."""
