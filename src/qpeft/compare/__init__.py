"""One question, many trainings: equal data and steps, tuned rates, seeds, controls, and what can be said of them."""
