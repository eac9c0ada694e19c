"""Commands for Shap-E's published models; the networks are in `shapeloom.shap_e`."""
