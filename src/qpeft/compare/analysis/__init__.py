"""Statistics, sentences and limits of a study, computed from its rows."""
