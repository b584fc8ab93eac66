"""Models: which ones a workflow names, and the cache on disk that brings and pins them."""
