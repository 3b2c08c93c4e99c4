"""What several trainings say together: the comparison of methods."""
