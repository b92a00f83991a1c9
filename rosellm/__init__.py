"""rosellm: serve language models from one small, readable engine.

Importing this package stays cheap: nothing here imports torch.
"""

__version__ = "0.1.0"
