"""The subcommands of `fcn`, one module each, imported when called: `command` is the click command."""
