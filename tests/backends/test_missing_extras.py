"""Without PennyLane or Qiskit, an error names the package to install."""

import subprocess
import sys

CODE = """
import sys
from qpeft.backends import as_backend
from qpeft.circuits import Ansatz, to_pennylane, to_qiskit
from qpeft.errors import ConfigError

def ask(missing, call):
    sys.modules[missing] = None
    try:
        call()
    except ConfigError as error:
        print(error)
    del sys.modules[missing]

ask("qiskit", lambda: as_backend("qiskit:statevector", 3))
ask("qiskit", lambda: to_qiskit(Ansatz("ry_ladder", 3, 2)))
ask("pennylane", lambda: as_backend("pennylane:default.qubit", 3))
ask("pennylane", lambda: to_pennylane(Ansatz("ry_ladder", 3, 2)))
ask("qiskit_aer", lambda: as_backend("qiskit:aer", 3))
"""


def test_missing_packages_are_named():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    qiskit, pennylane = "pip install qiskit qiskit-aer", "pip install pennylane"
    remedies = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert remedies == [qiskit, qiskit, pennylane, pennylane, qiskit]
