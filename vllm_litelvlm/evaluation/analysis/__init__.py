"""The paper's analyses of a CLIP, SigLIP or Qwen-VL, on data sets that know what is referred to."""
