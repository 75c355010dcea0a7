"""Advanced inputs: newer frontends show them only after a click on "advanced"."""

ADVANCED: dict[str, tuple[str, ...]] = {
    "BestiaryLoadDictionary": ("lora_strength", "name"),
    "BestiaryApplyDictionary": ("lora_strength", "name"),
    "BestiaryMergeDictionaries": ("first_strength", "second_strength", "name"),
    "BestiaryPart": ("blend_with", "blend_amount"),
    "BestiaryCombineParts": ("chain", "allow_repeats"),
    "BestiaryPartPrompt": ("dictionary",),
    "BestiaryAttentionMaps": ("layers", "include_negative"),
    "BestiaryShowAttention": ("first_step", "last_step", "mask_threshold"),
    "BestiaryPartRegions": ("start_percent", "end_percent", "feather"),
    "BestiaryDiscoverParts": ("seed", "flip_foreground", "foreground", "features", "fit", "allow_download"),
    "BestiarySegmentParts": ("features", "fit"),
    "BestiaryEvaluateParts": ("features", "fit"),
    "BestiaryLoadSpectrum": ("name", "soft_boundaries"),
    "BestiarySpectrumPrompt": ("dictionary", "stages", "clock", "model", "sigmas", "gap_filler"),
    "BestiaryMixAttributes": ("rest", "soft_boundaries"),
    "BestiaryStageText": ("stages", "clock", "model", "sigmas", "gap_filler"),
    "BestiaryIntersectRange": ("outside",),
    "BestiaryTrainingImages": ("part_maps", "foreground", "classes", "features"),
    "BestiaryTrainParts": ("accumulation", "lora_lr", "attention_weight", "recompute", "more_settings"),
    "BestiaryTrainInBackground": ("accumulation", "lora_lr", "attention_weight", "recompute", "more_settings"),
    "BestiaryTrainSpectrum": ("recompute", "more_settings"),
    "BestiaryTrainDreamBooth": ("prior_weight", "recompute", "initial_words", "save", "more_settings"),
}
"""Names of advanced inputs by node. Sockets among them stay visible: frontends (checked: 1.27 to 1.49) hide only widgets and draw every
socket without one."""
