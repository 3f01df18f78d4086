"""All that decides a prepared picture's pixels, beside ``inference``: the cache's key is a hash of this folder."""
