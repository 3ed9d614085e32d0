// The signatures of CoreGraphics that EdgeFace.swift uses, written down from Apple's documentation: spelling and types only.
@_exported import Foundation

public final class CGColorSpace {
    public static let sRGB: CFString = "sRGB"
    public init?(name: CFString) {}
}

public typealias CFString = String

public struct CGImageAlphaInfo {
    public let rawValue: UInt32
    public static let noneSkipLast = CGImageAlphaInfo(rawValue: 5)
}

public final class CGImage {
    public let width = 0
    public let height = 0
}

public final class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) {}
    public func draw(_ image: CGImage, in rect: CGRect) {}
}
