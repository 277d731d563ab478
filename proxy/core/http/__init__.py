"""HTTP/1.1 (RFC 9110, 9112) and WebSocket (RFC 6455) over a Stream, both sides; protocols on HTTP share it."""
