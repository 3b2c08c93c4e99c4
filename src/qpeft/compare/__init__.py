"""Studies that compare methods: equal data and steps, tuned learning rates, several seeds, controls, a report."""
