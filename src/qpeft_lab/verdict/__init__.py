"""Is it the circuit? A study of one circuit, its decision, and the page that says it.

circuit.py     what a user names, as an ansatz that every process of a study can load
protocol.py    the study, and what is fixed before its first row: questions, margin, seeds
planning.py    the plan of a study that fits into so many minutes
decision.py    from rows to verdict.json
page.py        verdict.html and verdict.md
"""

MARGIN = 5.0  # per cent of the gain of LoRA r=8: a smaller difference counts as none
PROTOCOL = "protocol.json"  # in the folder of a study
