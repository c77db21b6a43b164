/** Images for the model, small enough for the connection that carries them. */

import { within } from "./bounded.js";
import { errorWithCode } from "./failures.js";

const READING_TIMEOUT_MS = 10_000;
const LARGEST_SIDE_PX = 1_600;
const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/**
 * The image as a data: URL of at most `bytes` bytes: as it is where it fits, else as a smaller JPEG.
 * @param {Blob} image
 * @param {number} bytes
 * @throws {Error} with the code `image_unreadable`
 */
export async function shrunkImage(image, bytes) {
  try {
    if (TYPES.includes(image.type) && lengthOfUrl(image) <= bytes) return await urlOf(image);
    const bitmap = await within(createImageBitmap(image), READING_TIMEOUT_MS);
    let scale = Math.min(1, LARGEST_SIDE_PX / Math.max(bitmap.width, bitmap.height));
    for (; scale > 0.02; scale *= 0.7) {
      const canvas = document.createElement("canvas");
      canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale));
      canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      const url = canvas.toDataURL("image/jpeg", 0.8);
      if (url.length <= bytes) return url;
    }
  } catch (error) {
    console.error(error);
  }
  throw errorWithCode("image_unreadable", "This image can't be sent. Choose a PNG, JPEG, WebP or GIF.");
}

/** @param {Blob} image */
function lengthOfUrl({ size, type }) {
  return `data:${type};base64,`.length + 4 * Math.ceil(size / 3);
}

/**
 * @param {Blob} image
 * @returns {Promise<string>}
 */
function urlOf(image) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(image);
  });
}
