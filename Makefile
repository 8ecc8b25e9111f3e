# The doorway: every target is one line over cargo or a script of gateway/deploy.

SERVICES := gateway/deploy/services
TARGET := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help run chat test services services-stop run-services clean-services loadtest chaos bench mutants lint fmt

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

run: ## Run the gateway on its own (in-process queues, one local file); ARGS="..." are its arguments
	@cargo run --release -- $(ARGS)

chat: ## Talk to a running gateway in the terminal; ARGS="--user alice ..."
	@cargo run --release -- chat $(ARGS)

test: ## Run every test, with private RabbitMQ, Redis and MariaDB; installs what is missing
	@gateway/deploy/test

services: ## Start private RabbitMQ, Redis and MariaDB and keep them running
	@$(SERVICES) install
	@$(SERVICES) start
	@$(SERVICES) env
	@echo '# in a shell: eval "$$($(SERVICES) env)"    to stop: make services-stop'

services-stop: ## Stop the kept services, keep their data
	@$(SERVICES) stop

run-services: ## Run the gateway on the kept services, starting them if need be; ARGS="..."
	@$(SERVICES) install
	@$(SERVICES) start
	@settings=$$($(SERVICES) env) && eval "$$settings" && exec cargo run --release -- $(ARGS)

clean-services: ## Stop the kept services and delete their data
	@$(SERVICES) clean

loadtest: ## Load a gateway of its own and judge the outcome; ARGS="--help" tells what it can do
	@cargo build --release --package tidegate --bin tidegate
	@cargo run --release --package tidegate-loadtest -- run --start-gateway --gateway-bin $(TARGET)/release/tidegate $(ARGS)

chaos: ## Break gateways and services under traffic for five minutes and judge the outcome; ARGS="--seed 7" varies it
	@$(SERVICES) install
	@cargo build --release --package tidegate --bin tidegate
	@cargo run --release --package tidegate-loadtest -- chaos --duration 5m --gateways 3 --overlap --gateway-bin $(TARGET)/release/tidegate $(ARGS)

bench: ## Run the micro-benchmarks; ARGS="-- codec" picks some
	@cargo bench --package tidegate-benches $(ARGS)

mutants: ## Break each guarantee on purpose and expect its test to notice; ARGS="NAME" picks some
	@core/tests/mutate $(ARGS)

lint: ## Check format, lints, the crates' borders and the scripts
	@gateway/deploy/lint

fmt: ## Format the code
	@cargo fmt --all
