"""Shap-E's published networks: their parts, files and names. Commands that use them: `sampling.shap_e`."""
