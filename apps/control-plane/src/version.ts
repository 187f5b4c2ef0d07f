// Owns the version that the control plane says it is.
export const controlPlaneVersion = '0.1.0';
