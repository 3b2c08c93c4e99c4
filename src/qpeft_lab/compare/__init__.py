"""Studies that compare methods: equal data and steps, tuned learning rates, several seeds,
controls, a report.
"""

from importlib.resources import files

# the names of the studies that are part of qpeft
BUILT_IN = tuple(
    sorted(file.name.removesuffix(".yaml") for file in (files(__name__) / "builtin").iterdir())
)

# studies of published tables, by the path that they have in the repository
RECIPES = tuple(sorted(f"recipes/{file.name}" for file in (files(__name__) / "recipes").iterdir()))
