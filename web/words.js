/** Every sentence that the front end says, in the languages of the pack. */

import { app } from "../../scripts/app.js";

const WORDS = {
  en: {
    references: "{n} references",
    reference: "1 reference",
    rank: "rank {n}",
    layers: "{n} layers",
    last_of: "The last of {n} runs.",
    landed: "{landed} of {layers} layers",
    style: "style",
    neutral: "neutral",
    positive: "positive",
    negative: "negative",
    merged: "merged",
    live: "live",
    energy: "{block}: {percent} % of the change",
    cfg_1: "cfg is 1: there is no negative side, only the style acts. Raise cfg for asymmetric guidance.",
    left_out: "{n} layers of this LoRA do not exist in this model and were left out.",
    no_style:
      "This is the neutral LoRA, predicted from gray pictures: it has no style. Connect the output lora of Images to LoRA here.",
    infinity_vae:
      "This file is named as a VAE that infinity_2b_reg.pth was not trained with. Its pictures would be bad: load infinity_vae_d32reg.pth.",
    infinity_small: "infinity_2b_reg.pth was trained for 1M alone. Smaller pictures come out worse.",
    dropped: "Pictures for Images to LoRA",
    not_pictures: "{names}: not a picture that ComfyUI reads. Drop PNG, JPEG or WebP files.",
    unreadable: "{names}: the file is damaged or no picture. Open it in an image editor and save it again as PNG.",
    too_large:
      "{names}: larger than the {limit} MB that this ComfyUI takes. Scale it down (1024 pixels a side show a style well) and drop it again.",
    too_many: "This node takes {most} pictures: {n} of those dropped are left out.",
    refused: "{names}: ComfyUI did not take the file ({reason}). Check that its input folder can be written.",
    template: "Pictures of this template",
    template_missing:
      "{names}: could not be put into ComfyUI's input folder ({reason}). Choose pictures of your own in the Load Image nodes.",
    missing: "{name} is not in {folder}: put it there and press R, or choose another one here.",
    lost: "ComfyUI was restarted",
    lost_detail: "The run that was going on is lost, your workflow is not: press Run again.",
  },
  zh: {
    references: "{n} 张参考图",
    reference: "1 张参考图",
    rank: "秩 {n}",
    layers: "{n} 层",
    last_of: "共运行 {n} 次，此为最后一次。",
    landed: "{layers} 层中 {landed} 层已应用",
    style: "风格",
    neutral: "中性",
    positive: "正向",
    negative: "负向",
    merged: "合并",
    live: "实时",
    energy: "{block}：占变化量的 {percent} %",
    cfg_1: "cfg 为 1：没有负向分支，只有风格起作用。要用非对称引导，请调高 cfg。",
    left_out: "此 LoRA 有 {n} 层在该模型中没有对应位置，已略过。",
    no_style: "这是中性 LoRA，由纯灰图片预测，没有风格。请在此连接“图像转 LoRA”的 lora 输出。",
    infinity_vae: "从文件名看，infinity_2b_reg.pth 不是用这个 VAE 训练的，画面会很差：请加载 infinity_vae_d32reg.pth。",
    infinity_small: "infinity_2b_reg.pth 只用 1M 的尺寸训练过，更小的画面会变差。",
    dropped: "图像转 LoRA 的参考图",
    not_pictures: "{names}：不是 ComfyUI 能读取的图片。请拖入 PNG、JPEG 或 WebP 文件。",
    unreadable: "{names}：文件已损坏或不是图片。请用图像编辑软件打开，另存为 PNG。",
    too_large: "{names}：超过此 ComfyUI 允许的 {limit} MB。请缩小后再拖入（边长 1024 像素足以体现风格）。",
    too_many: "此节点最多接受 {most} 张图片：拖入的图片中有 {n} 张未使用。",
    refused: "{names}：ComfyUI 没有接收该文件（{reason}）。请检查其 input 文件夹是否可写。",
    template: "此模板的图片",
    template_missing: "{names}：无法放入 ComfyUI 的 input 文件夹（{reason}）。请在“加载图像”节点中选择自己的图片。",
    missing: "{folder} 中没有 {name}：请放入该文件后按 R，或在此选择另一个。",
    lost: "ComfyUI 已重新启动",
    lost_detail: "正在进行的运行已丢失，工作流没有丢失：请再次点击运行。",
  },
};

/** The words of `key` in the language of the front end, or `otherwise`; {name} is replaced by `values.name`. */
export function say(key, values = {}, otherwise = key) {
  const language = (app.extensionManager?.setting.get("Comfy.Locale") ?? "en").split("-")[0];
  const text = WORDS[language]?.[key] ?? WORDS.en[key] ?? otherwise;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Show one sentence at the corner of the screen. severity: "error", "warn" or "info". */
export function tell(severity, title, sentence) {
  app.extensionManager.toast.add({ severity, summary: title, detail: sentence, life: 15000 });
}
