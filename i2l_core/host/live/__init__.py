"""Live LoRAs: added to the activations of the user's MODEL while a sampler runs (docs/live-lora.md).

Words of this room:

live LoRA    a LoRA with a strength, and where and when it acts (`loras.LiveLoRA`)
engine       all live LoRAs of one MODEL, and the wrappers that bring them into its samplings (`engine.LiveEngine`)
run          one sampling: which LoRAs are active at this sigma, on which rows (`run.SamplingRun`)
cond batch   the lists of conds that ComfyUI is about to predict: [positive, negative] under plain CFG
chunk        equal rows of one forward: one conditioning for all pictures of the batch (`branches.Chunk`)
branch       the side of CFG that a chunk is on, positive or negative
tag          a mark on a conditioning; a LoRA with a tag acts on its chunks only (Style Region)
plan         for each chunk of a forward, the LoRAs that act on it and their strengths
stack        the LoRAs of a plan as two batched products for each Linear (`grouped_lora.GroupedLoRA`)
token mask   a mask of the picture as a weight for each token of a layer (`hooks.TokenMasks`)
guest        a model that another MODEL's sampling runs beside its own (core's Dual Model guider)
"""
