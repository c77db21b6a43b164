/** Creates the transport for a plan's connection. */
/**
 * @param {import("./transport.js").TransportContext} context
 * @returns {import("./transport.js").Transport}
 */
export declare function createTransport(context: import("./transport.js").TransportContext): import("./transport.js").Transport;
