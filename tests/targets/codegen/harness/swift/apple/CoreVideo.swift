// The signatures of CoreVideo that EdgeFace.swift uses, written down from Apple's documentation: spelling and types only.
import Foundation

public final class CVPixelBuffer {}
public typealias CVReturn = Int32
public typealias OSType = UInt32
public struct CFAllocator {}
public let kCFAllocatorDefault: CFAllocator? = nil
public let kCVPixelFormatType_32BGRA: OSType = 0x4247_5241
public let kCVReturnSuccess: CVReturn = 0
public struct CVPixelBufferLockFlags: OptionSet, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
}

public func CVPixelBufferCreate(
    _ allocator: CFAllocator?, _ width: Int, _ height: Int, _ type: OSType, _ attributes: [String: Any]?,
    _ out: UnsafeMutablePointer<CVPixelBuffer?>
) -> CVReturn { 0 }
@discardableResult
public func CVPixelBufferLockBaseAddress(_ buffer: CVPixelBuffer, _ flags: CVPixelBufferLockFlags) -> CVReturn { 0 }
@discardableResult
public func CVPixelBufferUnlockBaseAddress(_ buffer: CVPixelBuffer, _ flags: CVPixelBufferLockFlags) -> CVReturn { 0 }
public func CVPixelBufferGetBaseAddress(_ buffer: CVPixelBuffer) -> UnsafeMutableRawPointer? { nil }
public func CVPixelBufferGetBytesPerRow(_ buffer: CVPixelBuffer) -> Int { 0 }
