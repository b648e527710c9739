# promptfoo: options go in a provider's `config.passthrough`, see promptfooconfig.yaml.
export PROMPTFOO_CONFIG_DIR=. PROMPTFOO_DISABLE_TELEMETRY=1 PROMPTFOO_DISABLE_UPDATE=1

sed -i "s/budget: 64/budget: $BUDGET/" promptfooconfig.yaml  # no variable is rendered there
promptfoo eval --no-cache
