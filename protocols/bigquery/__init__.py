"""BigQuery: REST v2, with the Storage API's reads to come. Its PROTOCOL follows with serve.py."""
