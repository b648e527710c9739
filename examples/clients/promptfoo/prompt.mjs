import { readFileSync } from "node:fs";

/** One user's turn, with the picture if there is one. */
export default function prompt({ vars: { picture, question } }) {
  const content = [{ type: "text", text: question }];
  if (picture) {
    const url = `data:image/png;base64,${readFileSync(picture, "base64")}`;
    content.unshift({ type: "image_url", image_url: { url } });
  }
  return [{ role: "user", content }];
}
