from dagster_taskiq.cli import main

main(prog_name="dagster-taskiq")
