package android.graphics;

public final class Bitmap {
    private final int[] pixels;
    private final int width;
    private final int height;

    public Bitmap(int[] pixels, int width, int height) {
        this.pixels = pixels;
        this.width = width;
        this.height = height;
    }

    public int getWidth() { return width; }

    public int getHeight() { return height; }

    public void getPixels(int[] out, int offset, int stride, int x, int y, int width, int height) {
        if (x < 0 || y < 0 || x + width > this.width || y + height > this.height) throw new IllegalArgumentException();
        for (int row = 0; row < height; row++) {
            System.arraycopy(pixels, (y + row) * this.width + x, out, offset + row * stride, width);
        }
    }
}
