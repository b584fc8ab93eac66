"""Objects in S3 or in a local directory, behind one small seam."""
