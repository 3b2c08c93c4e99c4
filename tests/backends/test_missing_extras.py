"""Without PennyLane or Qiskit, an error names the package to install."""

import subprocess
import sys

CODE = """
import sys
from qpeft.backends.named import as_backend
from qpeft.circuits import Ansatz
from qpeft.errors import ConfigError

def ask(missing, call):
    sys.modules[missing] = None
    try:
        call()
    except ConfigError as error:
        print(error)

ask("qiskit_aer", lambda: as_backend("qiskit:aer", 3))
ask("qiskit", lambda: as_backend("qiskit:statevector", 3))
ask("qiskit", Ansatz("ry_ladder", 3, 2).to_qiskit)
ask("pennylane", lambda: as_backend("pennylane:default.qubit", 3))
ask("pennylane", Ansatz("ry_ladder", 3, 2).to_pennylane)
"""


def test_missing_packages_are_named():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    qiskit = ("backend qiskit:aer", "backend qiskit:statevector", "to_qiskit")
    assert done.stdout.splitlines() == [
        *(f"{what} needs Qiskit: pip install qiskit qiskit-aer" for what in qiskit),
        *(f"{what} needs PennyLane: pip install pennylane" for what in ("a PennyLane device", "to_pennylane")),
    ]
