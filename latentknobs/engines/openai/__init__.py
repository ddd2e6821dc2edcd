"""One choice for a whole response on any OpenAI-compatible server: vLLM, SGLang, llama.cpp, hosted ones.

The policy reads the prompt in this process; the request carries the chosen values as fields. `profiles` says which server takes
which. Needs the package `openai` (`pip install latentknobs[serve]`).
"""

from latentknobs.engines.openai.client import Client
from latentknobs.engines.openai.engine import OpenAIEngine
from latentknobs.engines.openai.profiles import PROFILES, Profile

__all__ = ["PROFILES", "Client", "OpenAIEngine", "Profile"]
