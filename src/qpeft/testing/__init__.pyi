from .adapter import adapter_contract as adapter_contract
from .ansatz import ansatz_contract as ansatz_contract
from .generator import generator_contract as generator_contract
