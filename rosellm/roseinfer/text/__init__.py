"""Text in and out: tokenizers, incremental detokenising, stop strings, chat templates.

Nothing here knows of torch, the engine or HTTP. The stages that a stream runs
through share one shape: ``feed()`` returns what is certain by now, ``flush()``
the rest.
"""
