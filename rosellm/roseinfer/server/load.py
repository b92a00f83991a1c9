"""From a configuration to a service that answers, wherever its engine runs."""

from __future__ import annotations

import asyncio

from rosellm.roseinfer.config import QUEUED_CACHES
from rosellm.roseinfer.engine.client import EngineClient
from rosellm.roseinfer.engine.listener import OnProgress
from rosellm.roseinfer.loading.open import check_checkpoint
from rosellm.roseinfer.server.defaults import Defaults, load_defaults
from rosellm.roseinfer.server.flags import Options
from rosellm.roseinfer.server.journal import Journal, build_of
from rosellm.roseinfer.server.pipeline import Pipeline
from rosellm.roseinfer.server.prompts import Prompts, TextTools
from rosellm.roseinfer.server.sampling import Sampling
from rosellm.roseinfer.server.schemas.sampling import MAX_CHOICES
from rosellm.roseinfer.server.service import Service
from rosellm.roseinfer.server.tracing import load_tracing
from rosellm.roseinfer.text.load import load_tokenizer


async def load_service(options: Options, client: EngineClient, on_progress: OnProgress) -> Service:
    """Read what stands beside the model, and wait until the engine serves.

    Raises:
        ModelError, ConfigError: it cannot serve what it was asked to.
        EngineDeadError: the engine ended while it was loading.
    """
    path = options.server.log_requests
    journal = None if path is None else Journal(path)
    tools, defaults = await asyncio.to_thread(_read_files, options)
    pipeline = Pipeline(client, tools.tokenizer)
    ready = await pipeline.start(on_progress)
    limits, server = options.engine.scheduler, options.server
    if journal is not None:
        journal.write(build_of(options.engine, ready))
    return Service(
        name=options.model_name,
        ready=ready,
        pipeline=pipeline,
        prompts=Prompts(tools, ready),
        sampling=Sampling(defaults, ready.vocab_size, ready.max_model_len),
        max_choices=limits.max_queue,
        max_prompt_tokens=limits.max_queue_tokens or QUEUED_CACHES * ready.capacity_tokens,
        max_answer_tokens=server.max_request_tokens or MAX_CHOICES * ready.max_model_len,
        default_timeout=server.default_timeout_s,
        unknown_parameters=options.server.unknown_parameters,
        max_body=options.server.max_body_mb << 20,
        journal=journal,
        tracing=load_tracing(options.server, options.model_name),
        block_size=options.engine.cache.block_size,
        log_prompts=options.server.log_prompts,
    )


def _read_files(options: Options) -> tuple[TextTools, Defaults]:
    model = options.engine.model
    check_checkpoint(model.model)  # the engine would say it too, once it has imported torch
    tools = TextTools.of(
        load_tokenizer(model.tokenizer or model.model, model.chat_template),
        model.tool_parser,
        model.reasoning_parser,
    )
    return tools, load_defaults(model.model, options.sampling, tools.tokenizer.eos_ids)
