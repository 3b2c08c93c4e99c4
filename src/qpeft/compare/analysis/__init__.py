"""From a study's rows to what may be said of them."""
