"""Layer 0: pure functions that make the texts of others safe to print.

Entry points: ``escapes.shown`` (for a terminal), ``escapes.json_text`` and ``escapes.yaml_text`` (documents),
``masking.mask`` (secrets), ``commands.command`` (a line to paste into a shell), ``suggestions.did_you_mean`` (hints),
``counts.counted`` (numbers with their nouns), ``yaml_nodes`` (YAML without objects), ``yaml_edit`` (changes of single
values in YAML).
"""
