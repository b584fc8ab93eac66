"""CloudEvents and S3 notices: bytes and headers in, triggers out; results in, events out."""
