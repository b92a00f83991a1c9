"""The subcommands of ``rosellm`` that a person runs to try a model or to look at one."""
