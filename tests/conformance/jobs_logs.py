"""Log messages, captured output, subprocesses."""

import logging
import subprocess
import sys

from conformance_case import Case
from conformance_ops import one
from dagster import (
    InitLoggerContext,
    OpExecutionContext,
    PipesSubprocessClient,
    colored_console_logger,
    get_dagster_logger,
    job,
    logger,
    op,
)


@op
def logs_by_context(context: OpExecutionContext) -> None:
    context.log.debug("to find bugs")
    context.log.info("to know")
    context.log.warning("to think about")
    context.log.error("to mend")
    context.log.critical("to run away")


@job
def logs_context() -> None:
    logs_by_context()


@op
def logs_by_python() -> None:
    logging.getLogger("conformance").info("by a captured logger")
    logging.getLogger("conformance.below").warning("by one below it")
    logging.getLogger("elsewhere").error("by one that is not captured")
    get_dagster_logger("named").info("by Dagster's logger")


@job
def logs_python() -> None:
    logs_by_python()


class Upper(logging.Handler):
    """Prints what Dagster logs, so that compute logs show that it was here."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().endswith("to the job's own logger"):
            print(f"printed by logs_to_own_logger: {record.levelname}", flush=True)


@logger(config_schema={"level": str})
def own_logger(context: InitLoggerContext) -> logging.Logger:
    made = logging.Logger("own", context.logger_config["level"])
    made.addHandler(Upper())
    return made


@op
def logs_to_own_logger(context: OpExecutionContext) -> None:
    context.log.info("info to the job's own logger")
    context.log.warning("warning to the job's own logger")


@job(logger_defs={"own": own_logger, "console": colored_console_logger})
def logs_own_logger() -> None:
    logs_to_own_logger()


@op
def prints(context: OpExecutionContext) -> None:
    print(f"printed by {context.op_handle}: on stdout")
    print(f"printed by {context.op_handle}: on stderr", file=sys.stderr)
    subprocess.run([sys.executable, "-c", f"print('printed by {context.op_handle}: below')"], check=True)


@job
def logs_captured() -> None:
    prints()
    prints.alias("prints_too")()


@op
def prints_and_fails() -> None:
    print("printed by prints_and_fails: before it fails")
    raise ValueError("after some output")


@job
def logs_captured_of_a_failure() -> None:
    prints_and_fails()


@op
def prints_in_each_attempt(context: OpExecutionContext) -> None:
    from dagster import RetryRequested

    print(f"printed by prints_in_each_attempt: attempt {context.retry_number}")
    if context.retry_number == 0:
        raise RetryRequested(max_retries=1)


@job
def logs_captured_of_attempts() -> None:
    prints_in_each_attempt()


OUTSIDE = """
from dagster_pipes import PipesContext, open_dagster_pipes
with open_dagster_pipes() as pipes:
    pipes.log.info(f"from outside: {pipes.get_extra('word')} {pipes.run_id != ''}")
    pipes.report_custom_message({"answer": 42})
"""


@op
def runs_outside(context: OpExecutionContext, pipes: PipesSubprocessClient) -> int:
    done = pipes.run(command=[sys.executable, "-c", OUTSIDE], context=context, extras={"word": "hello"})
    return int(done.get_custom_messages()[0]["answer"])


@job(resource_defs={"pipes": PipesSubprocessClient()})
def logs_pipes() -> None:
    runs_outside()


@op
def fails_outside(context: OpExecutionContext, pipes: PipesSubprocessClient) -> None:
    pipes.run(command=[sys.executable, "-c", "import sys; sys.exit(5)"], context=context)


@job(resource_defs={"pipes": PipesSubprocessClient()})
def logs_pipes_that_fail() -> None:
    fails_outside()
    one()


CASES = [
    Case("logs_context"),
    Case("logs_python"),
    Case("logs_own_logger", config={"loggers": {"own": {"config": {"level": "WARNING"}}}}),
    Case("logs_captured", not_in_process="pytest takes what the step's own subprocess prints"),
    Case("logs_captured_of_a_failure", success=False),
    Case("logs_captured_of_attempts"),
    Case("logs_pipes"),
    Case("logs_pipes_that_fail", success=False),
]
